"""The paper's tables and figures from networks of this project, and its findings held against them."""
