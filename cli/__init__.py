"""The podlane command: one command a file, one renderer."""
