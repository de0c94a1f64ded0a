"""Ways into the artifact: published and home-made files, and PyTorch's FX and PT2E graphs."""
