"""Reports: typed facts in, pages out. Plain values only; no torch."""
