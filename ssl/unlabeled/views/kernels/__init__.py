"""Operations on batches of images: crop, resample, colour."""
