"""Procedural faces: the traits of a person (`person`), the conditions of a picture (`shot`), and how both become pixels."""
