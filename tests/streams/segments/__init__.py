"""Segmentation, surveys and findings."""
