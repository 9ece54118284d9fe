"""Tables of training runs: trains, evaluates and prints the rows of the paper's tables next to the paper's figures."""
