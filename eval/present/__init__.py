"""Tables, plots and the paper's own figures."""
