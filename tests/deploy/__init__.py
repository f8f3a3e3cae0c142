"""Tests of deploy/: what is written there holds together, and runs."""
