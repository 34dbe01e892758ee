"""Reads images from folders, parquet files, tar shards, Hugging Face, LitData and torchvision data sets."""
