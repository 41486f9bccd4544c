"""What looks at a training without being part of it: doctor, dry run, bench, and the proof of resuming."""
