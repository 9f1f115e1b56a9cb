"""What the library says to callers in Python, said to people at the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

# What a message advises to do in Python -> what does the same here, or what to do where no option does it.
_ADVICE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"dajax\.list_models\(\)", "`dajax models`"),
    (r"DepthAnythingConfig\.v1\('base'\)", "v1-base"),
    (r"[Pp]ass config=… to replace it", "Name the right one with --config"),
    (r"(?:pass|with|give) config=…", "use --config or --kind"),
    (r"Pass another with token=… \(or run: hf auth login\), or token=False to send none", "Run: hf auth login"),
    (r"pass token=… \(or run: hf auth login\)", "run: hf auth login"),
    (r"(?:pass|with) token=…", "log in with: hf auth login"),
    (r"pass cache_dir=…, or set HF_HOME, to another folder", "set HF_HOME to another folder"),
    (r"save with format='hf'", "use --format hf"),
    (r"say what it is \(config=…\)", "say what it is (--config)"),
    (r"say with prefix=… which", "say with --prefix which"),
    (r"; check_finite=False loads them all the same", ""),
    (r": jax keeps them with jax\.config\.update\([^)]*\); dtype=\"float32\" says", "; --dtype float32 says"),
    (r"Pass value_range=\(black, white\)(?:, for example value_range=\(([^ )]*), ([^)]*)\))?\.",
     lambda found: f"Give --value-range auto, or --value-range {found[1] or 'LO'},{found[2] or 'HI'}."),
    (r"Pass allow_truncated=True to take what there is\.", "Give --partial to take what there is."),
    (r"\ballow_truncated was", "--partial was"),
    (r"give value_range=\"auto\", or the values that are black and white",
     "give --value-range auto, or --value-range LO,HI"),
    (r"more than \d+ bytes for each of max_pixels=.*?\. Pass a larger max_pixels if you trust the image\.",
     "more than is allowed. Make the image smaller first."),
    (r"are more than max_pixels=(.*?)\. Pass a larger max_pixels if you trust the image\.",
     r"are more than the limit of \1. Make the image smaller first."),
    (r"Download it first and pass the file\.", "Download it first and name the file."),
    (r"If you trust it, pass that URL itself\.", "If you trust it, name that URL itself."),
    (r"only dajax\.pipeline and `dajax predict` read URLs", "only `dajax predict` reads URLs"),
    (r"pass a local directory", "name a local folder"),
    (r"Download the image first and pass the file or its bytes\.", "Download the image first and name the file."),
    (r"; find_images lists the images of a folder", ""),
    (r"; buckets=… bounds the number of sizes", ""),  # --buckets is an option of one command alone
    (r"\bformats (?=must|was)", "--write "),
    (r"^(column|values) = ('[^']*')", r"--\1 \2"),
)  # fmt: skip
# Names of settings that are options of the same name; where a name is a word as well, it has to begin the message.
_NAMES = (
    "batch_size", "input_size", "max_rejects", "retry_rejects", "decode_timeout", "shard_format", "process_index",
    "process_count", "check_inputs", "remake_changed", "flip_disagreement", "raw_size", "side_by_side", "field_of_view",
    "focal_length", "known_points", "local_files_only",
    "max_depth", "png_scale", "value_range",
)  # fmt: skip
_WORDS = (
    "batch", "buckets", "column", "config", "dtype", "format", "kind", "limits", "output", "policy", "raw", "revision",
    "seconds", "shards", "size", "smooth", "style", "tiles", "values", "workers",
)  # fmt: skip
_NAME = re.compile(rf"(?<![\w.'\"-])({'|'.join(_NAMES)})(?![\w'\"])(?:=…)?")
# In the list of what differs from an earlier run of a job.
_DIFFERENT = re.compile(rf"(?:(?<=: )|(?<=; ))({'|'.join(_WORDS)}|model|colormap)(?= was )")
_FIRST_WORD = re.compile(rf"^({'|'.join(_WORDS)})(?= (?:must|is|goes|was)\b)")


def in_options(message: str) -> str:
    """Return a message of the library in which advice speaks of options, not of Python."""
    for pattern, replacement in _ADVICE:
        message = re.sub(pattern, replacement, message)
    message = _FIRST_WORD.sub(r"--\1", _DIFFERENT.sub(r"--\1", message))
    return _NAME.sub(lambda found: "--" + found[1].replace("_", "-"), message)


def say(command: str, message: str) -> None:
    """Print a message of a command, or of dajax itself (""), to standard error."""
    print(f"{f'dajax {command}'.rstrip()}: {in_options(message)}", file=sys.stderr, flush=True)
