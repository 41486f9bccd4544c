"""Reports: from typed facts to pages. Plain values only; no torch."""
