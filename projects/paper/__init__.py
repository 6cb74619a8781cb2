"""The paper's tables, parity with timm, and what padding changes."""
