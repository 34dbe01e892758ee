"""Lists of images: what lies in folders and files, once each, what it is taken for, and what is left out."""
