"""One short program per family of vision-language models; copy the one that is nearest to yours."""
