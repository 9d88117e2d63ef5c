"""Renderers: pure functions from a Report to text. The caller decides where it goes."""
