"""The paper's tables, parity with timm, and the effect of padding."""
