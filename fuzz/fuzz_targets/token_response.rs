#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bearer_proxy::token::fuzz::token_response(data));
