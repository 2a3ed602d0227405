"""Read models: each a pure fold of the log in one module, with its SQL beside it. Any can be dropped and rebuilt."""
