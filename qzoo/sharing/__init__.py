"""Sharing: int8 models as folders and Hub repositories, their cards, and other people's files."""
