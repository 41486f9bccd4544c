"""Tools around training: doctor, dry run, bench, and the proof that resuming is exact."""
