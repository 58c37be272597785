"""What is made of figures once they are measured: tables, plots, visual comparisons, one HTML file."""
