"""Trained networks at work outside a run: classes of single images, and files for other programs."""
