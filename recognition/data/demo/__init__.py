"""Procedural faces: who somebody is (`person`), how one picture was taken (`shot`), and how both become pixels."""
