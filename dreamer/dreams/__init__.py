"""The world model on its own: stepped, watched, measured, lived in and played."""
