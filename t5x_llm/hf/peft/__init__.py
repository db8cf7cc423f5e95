"""Adapters in the directories of PEFT, written, read, merged and proved."""
