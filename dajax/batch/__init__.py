"""Jobs over many images: nothing is lost when one is stopped, and several processes may do one together."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.batch.engine import Report as Report
    from dajax.batch.engine import run_batch as run_batch
    from dajax.batch.job_plan import Plan as Plan
    from dajax.batch.job_plan import plan_batch as plan_batch
    from dajax.batch.job_settings import BatchSettings as BatchSettings
    from dajax.batch.manifest import Row as Row
    from dajax.batch.manifest import read_manifest as read_manifest
    from dajax.batch.manifest import read_rejects as read_rejects
    from dajax.batch.verification import Verified as Verified
    from dajax.batch.verification import verify as verify
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "engine": ["Report", "run_batch"],
            "job_plan": ["Plan", "plan_batch"],
            "job_settings": ["BatchSettings"],
            "manifest": ["Row", "read_manifest", "read_rejects"],
            "verification": ["Verified", "verify"],
        },
    )
