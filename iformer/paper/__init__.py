"""The paper's printed figures beside measured ones: parameters, multiply-adds, its tables and Fig. 1(c)."""
