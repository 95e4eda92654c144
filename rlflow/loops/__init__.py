"""One file an algorithm; each reads like it. No Ray and no tensors here."""
