"""LUKS version 1: the header, its key slots, and how keys are made."""
