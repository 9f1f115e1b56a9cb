"""Training and fine-tuning: a step as a pure function, a loop over it, and synthetic scenes."""

from typing import TYPE_CHECKING

from dajax.lazy import lazy_names

if TYPE_CHECKING:
    from dajax.training.batches import SceneBatches as SceneBatches
    from dajax.training.batches import held_out_scenes as held_out_scenes
    from dajax.training.data.degrade import degrade_image as degrade_image
    from dajax.training.data.scene import Scene as Scene
    from dajax.training.data.scene import sample_scene as sample_scene
    from dajax.training.data.synthetic import Rendered as Rendered
    from dajax.training.data.synthetic import render_scene as render_scene
    from dajax.training.data.synthetic import render_scene_batch as render_scene_batch
    from dajax.training.data.synthetic import render_scenes as render_scenes
    from dajax.training.log import read_log as read_log
    from dajax.training.loop import run_training_loop as run_training_loop
    from dajax.training.optimizer import decay_mask as decay_mask
    from dajax.training.optimizer import encoder_only as encoder_only
    from dajax.training.optimizer import make_optimizer as make_optimizer
    from dajax.training.optimizer import poly_schedule as poly_schedule
    from dajax.training.step import TrainState as TrainState
    from dajax.training.step import make_train_step as make_train_step
    from dajax.training.train_settings import DataSettings as DataSettings
    from dajax.training.train_settings import ModelSettings as ModelSettings
    from dajax.training.train_settings import OptimizerSettings as OptimizerSettings
    from dajax.training.train_settings import TrainSettings as TrainSettings
    from dajax.training.train_settings import read_train_settings as read_train_settings
    from dajax.training.trainer import fresh_params as fresh_params
    from dajax.training.trainer import train as train
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "batches": ["SceneBatches", "held_out_scenes"],
            "data.degrade": ["degrade_image"],
            "data.scene": ["Scene", "sample_scene"],
            "data.synthetic": ["Rendered", "render_scene", "render_scene_batch", "render_scenes"],
            "log": ["read_log"],
            "loop": ["run_training_loop"],
            "optimizer": ["decay_mask", "encoder_only", "make_optimizer", "poly_schedule"],
            "step": ["TrainState", "make_train_step"],
            "train_settings": [
                "DataSettings",
                "ModelSettings",
                "OptimizerSettings",
                "TrainSettings",
                "read_train_settings",
            ],
            "trainer": ["fresh_params", "train"],
        },
    )
