"""The DeepSpeed learner as a plain object: one instance a rank. deepspeed is imported only here."""
