// placeholder
extern "C" int samq_placeholder() { return 0; }
