"""`MODEL.SE` and the trainer's keys: defaults, reading, checking."""
