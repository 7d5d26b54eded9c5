"""The recipe, each step reads a file and writes a file: pretrain -> distill."""
