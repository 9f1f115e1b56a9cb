"""Videos to steady depth and to coloured videos, by PyAV."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.video.raw import read_depth_video as read_depth_video
    from dajax.video.raw import read_depth_video_index as read_depth_video_index
    from dajax.video.reading import Frame as Frame
    from dajax.video.reading import VideoReader as VideoReader
    from dajax.video.run import VideoReport as VideoReport
    from dajax.video.run import VideoSettings as VideoSettings
    from dajax.video.run import depth_of_frames as depth_of_frames
    from dajax.video.run import depth_video as depth_video
    from dajax.video.smoothing import Smoother as Smoother
    from dajax.video.smoothing import smooth_depth as smooth_depth
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "raw": ["read_depth_video", "read_depth_video_index"],
            "reading": ["Frame", "VideoReader"],
            "run": ["VideoReport", "VideoSettings", "depth_of_frames", "depth_video"],
            "smoothing": ["Smoother", "smooth_depth"],
        },
    )
