"""Put the bundled image and its map side by side for the README: `make demo-image`."""

import sys
from pathlib import Path

from PIL import Image

image, depth, target = (Path(argument) for argument in sys.argv[1:])
with Image.open(image) as left, Image.open(depth) as right:
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
target.parent.mkdir(parents=True, exist_ok=True)
both.save(target, quality=88)
