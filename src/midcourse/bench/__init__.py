"""Speed, measured: decoding and training, each against what it replaces, interleaved in one run."""
