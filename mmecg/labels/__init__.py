"""Report-grounded label mining: from free text to labels with evidence, status and probability."""
