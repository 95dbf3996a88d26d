"""The paper's tables and figures beside what is measured."""
