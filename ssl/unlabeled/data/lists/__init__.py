"""Lists image files in folders and in list files: each file once, with its class, and with what was left out."""
