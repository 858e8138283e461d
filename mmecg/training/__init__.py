"""Training of the bundle: data, augmentation, objective, loop, checkpoints, curves."""

from mmecg.training.config import TrainingConfig, load_training_config
from mmecg.training.loop import train

__all__ = ["TrainingConfig", "load_training_config", "train"]
