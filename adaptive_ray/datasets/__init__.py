"""Data sets: arrays and folders of images, split into training, reference and test images."""
