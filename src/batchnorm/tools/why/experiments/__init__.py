"""One module for each experiment: what is run (``plan``, ``run``) and what is read from it (``summarize``)."""
