"""The core: facts, rules, money, states. Pure: no await, clock, randomness or I/O."""
