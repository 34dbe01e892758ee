"""Images with boxes and masks: read from files, checked, jittered, and handed out step by step."""
