"""What `rec` may name besides one packed set: several sets at once, folders and lists of image files, synthetic images."""
