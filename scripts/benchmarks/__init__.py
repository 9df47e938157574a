"""What ``scripts/bench_embed`` and ``scripts/bench_train`` share and measure. No part of the tools."""
