"""Masks from other annotation formats: palettes, RGB colors, labelme."""
