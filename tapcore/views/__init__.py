"""Throw-away views: what is written over a disk that stays as it is, and that many share."""
