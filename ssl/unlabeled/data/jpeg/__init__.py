"""Decodes JPEG by libjpeg-turbo or nvJPEG through torchvision; :mod:`unlabeled.data.decode` calls it."""
