"""The results of a run, for the user: read its folder, show it as a page, copy it, pack it."""
