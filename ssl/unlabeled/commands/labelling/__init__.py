"""Commands that say which images to label next, and what that saves."""
